"""The page, and the fold in JavaScript that it shares its golden files with."""
