"""`acorn data`: a person looks at rows."""
