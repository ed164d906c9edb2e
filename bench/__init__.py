"""The workbench: it launches, loads, observes and judges the product from outside."""
