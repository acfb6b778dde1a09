"""The MASt3R two-view reconstruction network in Flax: images in, pointmaps out."""
