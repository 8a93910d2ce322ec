"""report.html: one page that tells a person what a run did."""
