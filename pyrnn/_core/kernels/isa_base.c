#define LEVEL base
#include "level.h"
