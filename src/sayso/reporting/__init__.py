"""What `sayso report` is made of: numbers gathered, pictures chosen, plots drawn, one page."""
