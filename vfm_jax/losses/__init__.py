"""Equations: one value per example, or one scalar where the loss couples the batch. No reduction over devices here."""
