"""One HTML page about one or more runs: ``python -m distill.report RUN… [--output report.html]``."""
