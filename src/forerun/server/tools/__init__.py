"""Tools: which may be called, how models write calls, and answers taken apart as they come."""

from forerun.server.tools.conversation import written_out
from forerun.server.tools.definitions import Tool, ToolUse
from forerun.server.tools.held import held_answer
from forerun.server.tools.parser import ToolParser
from forerun.server.tools.registry import TOOL_PARSERS, knows_tools, parser_of_template, tool_parser
from forerun.server.tools.tool_format import ToolFormat

__all__ = ["TOOL_PARSERS", "Tool", "ToolFormat", "ToolParser", "ToolUse", "held_answer", "knows_tools", "parser_of_template", "tool_parser", "written_out"]
