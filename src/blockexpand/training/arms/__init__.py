"""The methods that can be trained, behind one Protocol."""
