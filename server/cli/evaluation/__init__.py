"""`fluid eval`: images of published prompt lists, in the folders that their scoring tools read."""
