"""What a comparison shows: a table, a page with plots."""
