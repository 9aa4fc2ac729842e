"""Test venues on loopback that answer as Binance, Bybit and OKX do; import one from its module."""
