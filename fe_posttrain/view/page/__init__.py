"""The parts of report.html: markup, figures as SVG, and one module for each stretch of the page."""
