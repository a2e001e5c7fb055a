"""The rating app: server, queue of work, pages. No torch."""
