"""Data sets: raw files → tensors, cached. One data set a file."""

from odenets.extra import experiments_extra

with experiments_extra("`odenets.data`"):
    from odenets.data.ecg import Beats as Beats
    from odenets.data.ecg import DataError as DataError
    from odenets.data.ecg import ECGData as ECGData
    from odenets.data.ecg import load_ecg as load_ecg
    from odenets.data.systems import lotka_volterra as lotka_volterra
    from odenets.data.systems import oscillators as oscillators
