# SPDX-License-Identifier: Apache-2.0
"""Probes: what frozen features know, asked by heads too small to find it out by themselves."""
