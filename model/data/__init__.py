"""Where pictures and captions come from, and the packed form that training reads."""
