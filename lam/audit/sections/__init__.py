"""Sections of the audit: each a pure measurement of codes and features, and the tables that it makes of all models."""
