"""Methods beside each other: what runs of a comparison measured, whether they match, and what may be concluded."""
