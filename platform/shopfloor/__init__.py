"""The glue of the platform: one module for each meeting of two components."""
