"""How the numbers are shown: on the page, in figures, in the terminal."""
