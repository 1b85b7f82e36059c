"""One HTML page that needs nothing but itself. Needs the extra ``report``."""
