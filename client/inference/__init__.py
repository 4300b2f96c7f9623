"""What a site does with a bundle: absent modalities made, raw data reconstructed, itself evaluated."""
