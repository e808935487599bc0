"""`torchdiffeq._impl.fixed_adams`."""

from odenets.torchdiffeq.adams import AdamsBashforth as AdamsBashforth
from odenets.torchdiffeq.adams import AdamsBashforthMoulton as AdamsBashforthMoulton
