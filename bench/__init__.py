"""Measurements that take minutes to hours: experiments as data, results as data, tables and pictures made of them.

python -m bench bench/experiments/quality.toml --data DIRECTORY     # measures, and writes bench/results/quality.json
make results                                                        # renders bench/RESULTS.md and docs/*.svg
"""
