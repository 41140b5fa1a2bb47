"""Trunks and heads, put together as a recipe names them."""
