"""One frozen, validated model per stage; field = flag = JSON key; an unknown key is an error."""
