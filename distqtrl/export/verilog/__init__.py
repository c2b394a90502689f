"""The program as Verilog cores."""
