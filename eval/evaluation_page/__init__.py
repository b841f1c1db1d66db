"""The page of one evaluation: what its files hold, tables, charts, gallery and template."""
