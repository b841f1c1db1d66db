"""The report page: numbers, charts and template."""
