"""The HTTP application: parsing, authentication, errors and routes; knows neither Ray nor torch."""
