"""From raw samples to numbers, tables and JSON. Nothing here measures, and nothing here prints."""
