cdef object new_empty(tuple shape, object dtype)
cdef object huge_empty(size_t bytes_)
