"""Export of models and masks to formats of other libraries."""
