"""Pages: the report, and a guide through each paper."""
