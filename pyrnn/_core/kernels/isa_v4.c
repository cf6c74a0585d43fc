#define LEVEL v4
#include "level.h"
