"""What the scripts share: their options, where and how numbers were made, kept runs, and a peer."""
