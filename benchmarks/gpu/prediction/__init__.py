"""What a GPU should need, by count: predictions of docs/roofline.md.

counts     products, bytes and launches of a backbone's pass, counted by running it without values
times      from counts to seconds: the assumptions, and the share of the peak that each shape reaches
page       the tables and the plot of docs/roofline.md
"""
