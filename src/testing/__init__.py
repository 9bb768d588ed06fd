"""What plugin authors and users' tests import: a null backend, a virtual clock."""
