"""From prompt to pixels: generate is the plain definition, engine the fast form, serving what workers load."""
