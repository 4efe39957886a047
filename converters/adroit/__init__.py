"""Adroit demonstrations in the layout of DAPG (Rajeswaran et al. 2018): pickles of observations and actions."""

from converters.adroit.converter import AdroitConverter as AdroitConverter
