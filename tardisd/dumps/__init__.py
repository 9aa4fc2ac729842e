"""Reading dumps: vendors' CSV files to checked batches; knows no vendor, and stores nothing."""
