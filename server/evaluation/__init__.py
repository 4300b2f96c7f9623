"""What finished models are worth, on subjects that nobody trained on."""
