"""Equations: one value per example, or one scalar where the loss couples the batch. Nothing here knows of devices."""
