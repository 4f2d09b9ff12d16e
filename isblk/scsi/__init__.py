"""SCSI: what a logical unit can be asked and what it answers (SPC-4, SBC-3, SAM-5); pure, bytes in and values out."""
