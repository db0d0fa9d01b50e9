"""Pictures for people: kept tokens on the camera's picture, filmstrips, videos."""
