#define LEVEL v2
#include "level.h"
