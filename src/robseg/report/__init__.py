"""The report: one HTML file that shows what is in one or several run folders."""
