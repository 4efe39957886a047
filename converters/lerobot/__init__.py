"""LeRobot sets, versions 1 to 3."""

from converters.lerobot.converter import LerobotConverter as LerobotConverter
