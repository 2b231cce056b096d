"""Composed scenes, with captions that are true by construction. No torch; images are numpy arrays.

vocabulary in, image out: things (words) -> facts (what a caption states) -> wording (the caption)
                                                                          -> compose (layout and pixels)
bank                  captioned facts for training; dataset: a fixed sample for the image tokenizer
sprites               cut-outs that scenes are composed of; build_sprites makes them, from emoji packages
clipart, portraits    optional sprites: Open Clip Art, DiceBear avatars (avatars.mjs runs in Node.js)
"""
