"""The student's files: loading, saving, chat format, batches."""
