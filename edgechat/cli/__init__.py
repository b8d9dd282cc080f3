"""Command-line interface. Only this package imports click; each command imports other packages when it runs."""
