"""The audits, one module per family of trainers; each function named ``case_...`` yields what it built."""
